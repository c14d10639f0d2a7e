"""Data files made better row by row: duplicates, bad texts and evaluation texts out, then split and mixed."""
