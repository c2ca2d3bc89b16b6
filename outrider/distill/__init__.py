"""`outrider distill`: makes a draft for a target, of one of two kinds.

Three stages, each of which resumes where it was interrupted: the target writes
texts (`shared.writing`), gives its probabilities and hidden states for every token
of them (`shared.teaching`), and a draft learns these (`shared.training`): some of
the target's own layers (`layers`), or one layer that reads hidden states (`eagle3`).
"""
