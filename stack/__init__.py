"""Brings up the real servers and the five services on one machine."""
