"""An account: one user's money in one currency."""

from dataclasses import dataclass

#: (user id, currency code)
AccountKey = tuple[str, str]

#: Most money on one account, minor units: far above any customer's, far below what SQL and protobuf can count.
BALANCE_MINOR_MAX = 10**18


@dataclass(frozen=True, slots=True)
class Account:
    """Money of one user in one currency, minor units; 0 <= held <= balance."""

    user_id: str
    currency_code: str
    balance_minor: int
    held_minor: int

    @property
    def key(self) -> AccountKey:
        """What names the account."""
        return (self.user_id, self.currency_code)

    @property
    def available_minor(self) -> int:
        """What can be held or withdrawn."""
        return self.balance_minor - self.held_minor

    def changed(self, *, balance: int = 0, held: int = 0) -> "Account":
        """The account after adding to both, minor units. Asserts the rule, which SQL checks once more."""
        after = Account(self.user_id, self.currency_code, self.balance_minor + balance, self.held_minor + held)
        assert 0 <= after.held_minor <= after.balance_minor, "a decision would break 0 <= held <= balance"
        return after
