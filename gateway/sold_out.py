"""What is known of a sale's stock from its WatchStock stream, and when that is enough to say "sold out"."""

from flashsale.inventory.v1 import inventory_service_pb2 as inventory

#: A reading older than this is no longer acted upon, s: the stream sends one at least every 250 ms.
READING_S_MAX = 1.0


def is_spoken_for(reading: inventory.Stock) -> bool:
    """Whether a sale that is open has no unit for whoever comes now: none is available, or somebody waits in line, to
    whom those that are belong."""
    return reading.available == 0 or reading.waiting > 0


class SaleStock:
    """The last reading of one sale, and who holds a unit or waits in line for one, by fingerprint. Times are seconds of
    one monotonic clock.

    At most ``fingerprints_max`` are kept. A sale with more of them is never called sold out here, for then a winner
    could no longer be told from the others; its requests go to the services.

    A request that was sent on is remembered for at least ``sent_s`` seconds, and twice that at most, which must be
    longer than a call lives: its repetition meanwhile is judged by the services, never by a reading that was made
    before it got its unit.
    """

    def __init__(self, sale_id: str, fingerprints_max: int, sent_s: float, *, sole: bool) -> None:
        self.sale_id = sale_id
        #: Whether every request that can get a unit comes through this gateway.
        self.sole = sole
        self.stock: inventory.Stock | None = None
        #: When the last message with a reading came.
        self.read_at = float("-inf")
        #: Grows with each message that changed the reading.
        self.version = 0
        self._fingerprints_max = fingerprints_max
        self._fingerprints: set[int] = set()
        self._complete = False
        self._sold_out_until = float("-inf")
        self._sent_s = sent_s
        #: How often each fingerprint was sent since ``_sent_since``, and in the time before. All of one time are
        #: forgotten at once: a dictionary whose first items are removed one by one is slow to tell its first item.
        self._sent: dict[int, int] = {}
        self._sent_before: dict[int, int] = {}
        self._sent_since = float("-inf")

    def apply(self, message: inventory.WatchStockResponse, now: float) -> None:
        """Takes in the next message of the stream."""
        self._forget_sent(now)
        if message.fingerprints_reset:
            self._fingerprints.clear()
            self._complete = True
        self._fingerprints.difference_update(message.fingerprints_removed)
        if self._complete:
            self._fingerprints.update(message.fingerprints_added)
            if len(self._fingerprints) > self._fingerprints_max:
                # Stays so until the stream begins anew: what has been dropped cannot be known again.
                self._fingerprints.clear()
                self._complete = False
        reading = message.stock if message.HasField("stock") else None
        if reading != self.stock:
            self.version += 1
        self.stock = reading
        if reading is None:
            self.read_at = self._sold_out_until = float("-inf")
            return
        self.read_at = now
        empty = reading.open and is_spoken_for(reading) and self._complete
        self._sold_out_until = now + READING_S_MAX if empty else float("-inf")

    def lapse(self) -> None:
        """Forgets the reading: the stream has ended, and the next one begins with everything anew."""
        if self.stock is not None:
            self.version += 1
        self.stock = None
        self._complete = False
        self._fingerprints.clear()
        self.read_at = self._sold_out_until = float("-inf")

    def fresh_stock(self, now: float) -> inventory.Stock | None:
        """The reading, if it is not older than READING_S_MAX."""
        return self.stock if now < self.read_at + READING_S_MAX else None

    def is_sold_out_for(self, mark: int, now: float) -> bool:
        """Whether the request of this fingerprint can be refused, unless it would wait in line: there is nothing for it
        now, and it is none that holds a unit, waits for one or is on its way to one."""
        if now >= self._sold_out_until:
            return False
        return mark not in self._fingerprints and mark not in self._sent and mark not in self._sent_before

    def is_surely_sold_out_for(self, mark: int, now: float) -> bool:
        """As ``is_sold_out_for``, and no other gateway can have let this request have a unit since the reading."""
        return self.sole and self.is_sold_out_for(mark, now)

    def is_held_by(self, mark: int) -> bool:
        """Whether the request of this fingerprint holds a unit or waits for one, or was sent on lately and may."""
        return mark in self._fingerprints or mark in self._sent or mark in self._sent_before

    def note_sent(self, mark: int, now: float) -> None:
        """Notes that the request of this fingerprint goes to the services now."""
        self._forget_sent(now)
        self._sent[mark] = self._sent.get(mark, 0) + self._sent_before.pop(mark, 0) + 1

    def note_refused(self, mark: int) -> None:
        """Notes that the services refused it for lack of stock or of room in line: it got nothing by being sent."""
        for sent in (self._sent, self._sent_before):
            times = sent.pop(mark, 0)
            if times > 1:
                sent[mark] = times - 1

    def _forget_sent(self, now: float) -> None:
        if now - self._sent_since > self._sent_s:
            self._sent_before, self._sent, self._sent_since = self._sent, {}, now
