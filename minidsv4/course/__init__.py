"""What notebooks, figures and tests of the course need; nothing but the command line imports it."""
