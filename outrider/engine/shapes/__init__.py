"""Kernel shapes that give every token the same bits."""
