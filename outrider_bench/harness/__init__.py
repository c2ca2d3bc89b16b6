"""What starts and measures a system: hosts, delays, prompts, sections."""
