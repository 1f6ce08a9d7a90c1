"""Solutions of the exercises in 17_chat.ipynb."""


def user_turn(called, results, text):
    """Results in the order of the calls, then the text, blank lines between."""
    given = dict(results)
    parts = [f"<tool_result>{given[id]}</tool_result>" for id in called]
    if text:
        parts.append(text)
    return "<｜User｜>" + "\n\n".join(parts)


def passed_pieces(pieces, marker):
    """What is passed on after each piece: no part of the marker, nothing behind it."""
    passed = []
    held = ""
    ended = False
    for piece in pieces:
        held = "" if ended else held + piece
        if marker in held:
            passed.append(held[: held.index(marker)])
            ended = True
            continue
        could = max(n for n in range(len(marker)) if held.endswith(marker[:n]))
        passed.append(held[: len(held) - could])
        held = held[len(held) - could :]
    return passed


def tool_prompt(system, schemas, tool_choice, history):
    """Tools are shown where they may be chosen; reasoning stays where there are any."""
    text = "<｜begin▁of▁sentence｜>" + system
    if schemas and tool_choice != "none":
        text += "\n\n## Tools\n\n" + "\n".join(schemas)
    for user, reasoning, answer in history:
        thought = "<think>" + reasoning if schemas else ""
        text += "<｜User｜>" + user + "<｜Assistant｜>" + thought
        text += "</think>" + answer + "<｜end▁of▁sentence｜>"
    return text
