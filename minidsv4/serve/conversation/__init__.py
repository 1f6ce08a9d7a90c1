"""The text of a conversation, part by part: markers, texts, messages, rendering, parsing. `serve/chat_format.py` is
the door."""
