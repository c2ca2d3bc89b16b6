"""Tests of the `outrider` command."""
