"""`python -m minidsv4 bench`: speed and memory side by side with Hugging Face transformers, on the same weights."""
