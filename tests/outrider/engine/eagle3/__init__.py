"""Tests of feature drafts in the EAGLE-3 layout."""
