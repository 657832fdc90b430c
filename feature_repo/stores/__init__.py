"""Feast plug-ins: online and offline stores that keep the promises the stock ones do not."""
