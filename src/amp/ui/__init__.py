"""`amp ui`: a page on this machine that shows where streams stand. It looks, and does nothing."""
