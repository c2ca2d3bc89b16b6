"""The `outrider` command, the processes that it starts, and reports for terminal and browser."""
