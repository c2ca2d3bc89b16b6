"""`outrider distill`: makes a draft for a target out of the target's own layers.

Three stages, each of which goes on where it was interrupted: the target writes
texts (`writing`), says what it thinks of every token of them (`teaching`), and a
model of some of its layers learns to think the same (`training`).
"""
