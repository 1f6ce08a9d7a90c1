"""A conversation of four turns for notebook 17, and what each token of a conversation belongs to."""

from minidsv4.serve.conversation.markers import BOS, DSML, END_THINK, THINK, USER

TURNS = (  # question, thought, answer
    ("What is 17 * 23?", "17 * 20 = 340 and 17 * 3 = 51, so it is 391.", "It is 391."),
    ("And twice that?", "Twice 391: 800 less 18, which is 782.", "It is 782."),
    ("Is it even?", "The last digit of 782 is 2, so 2 divides it.", "Yes."),
    ("Is it prime?", "782 = 2 * 391. An even number above 2 is not.", "No, it is even."),
)
FOLLOWS = {BOS: "instructions", USER: "user", THINK: "reasoning", END_THINK: "answer", DSML: "call"}


def talk():
    """The messages of the four turns, a system's text before them."""
    messages = [{"role": "system", "content": "Be brief."}]
    for question, thought, answer in TURNS:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer, "reasoning": thought})
    return messages


def kinds(tokenizer, text):
    """What each token of a conversation belongs to: "marker", or what the last marker says of the text behind it.

    tokenizer  one with the markers of the chat format
    text       as `encode` gives it, from BOS on
    """
    names = {id: marker for marker, id in tokenizer.markers.items()}
    found = []
    kind = ""
    for id in tokenizer.encode_marked(text):
        kind = FOLLOWS.get(names.get(id), kind)
        found.append("marker" if id in names else kind)
    return found
