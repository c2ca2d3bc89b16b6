"""Finds the tokens of a job that its slot, or another one, has read already."""

from __future__ import annotations

from outrider.engine.attention.rope import Rope
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.slots import Slots


def place(job: Job, slots: Slots, rope: Rope) -> tuple[int, int]:
    """The slot from which a job may start, and how many tokens it need not read.

    A job whose text has outgrown the rotary frequencies of its slot reads all of it again.
    """
    frequencies = rope.frequencies(job.text_length)
    if rope.reads_again and job.start:
        sources = {job.slot} if job.copy_from is None else {job.slot, job.copy_from[0]}
        if any(slots.frequencies[source] != frequencies for source in sources):
            job.read_again(slots.held(job.slot, job.start, job.copy_from))
    if not job.reads_all:
        return job.slot, 0
    job.prompt_length = job.text_length
    source, num_known = slots.longest_prefix(job.slot, job.token_ids, frequencies)
    if slots.frequencies[job.slot] != frequencies:
        slots.forget([job.slot])  # also if this pass has no room for the job
        slots.frequencies[job.slot] = frequencies
    return source, job.num_skippable(num_known)
