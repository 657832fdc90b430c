"""What the stores raise when they cannot answer. No Feast in here."""


class StoreDown(Exception):
    """The store did not answer in time, or cannot take the write: nothing was half-written."""
