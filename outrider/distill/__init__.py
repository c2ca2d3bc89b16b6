"""`outrider distill`: makes a draft for a target out of the target's own layers.

Three stages, each of which resumes where it was interrupted: the target writes
texts (`writing`) and gives its probabilities for every token of them (`teaching`),
and a model of some of its layers learns these (`training`).
"""
