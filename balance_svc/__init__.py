"""Money of customers: accounts, holds and a double-entry ledger. Calls no other service."""
