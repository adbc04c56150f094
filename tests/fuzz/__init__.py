"""Input that nobody meant: made from the contracts, thrown at the running system, for as long as one likes."""
