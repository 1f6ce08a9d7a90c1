"""`python -m minidsv4 chat` as a user meets it: commands, Ctrl-C and Ctrl-D, narrow terminals, no colours."""

import io
import os
import signal

import pytest
from test_chat_session import CALL, TOKENIZER, E, Scripted, session_of

import minidsv4 as v4
from minidsv4.__main__ import main
from minidsv4.serve import chat
from minidsv4.serve.chat import Chat
from minidsv4.serve.chat_history import History
from minidsv4.serve.screen import Screen, cells, harmless


def talked(monkeypatch, session, *lines, file=None, width=0, colours=False):
    """What the screen shows when these lines are typed; an exception among them is raised in their place."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, EOFError())
        if isinstance(line, BaseException | type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    out = io.StringIO()
    Chat(session, History(file), Screen(out, lambda: width, colours)).run()
    return out.getvalue()


def test_a_conversation_looks_like_this(monkeypatch):
    session = session_of(f"r r</think>so{CALL.format('2+3')}{E}", f"again</think>It is 5.{E}", mode="high", tools=True)
    assert talked(monkeypatch, session, "2+3?").splitlines() == [
        *("thinking:", "r r", "answer:", "so", "calls:", 'calculate {"expression": "2+3"}'),
        *("gives:", "5", "thinking:", "again", "answer:", "It is 5.", ""),
    ]


def test_commands_say_what_is_and_change_it(monkeypatch):
    session = session_of(f"a{E}", f"r</think>b{E}")
    first = ("/help", "/mode", "one", "/mode high", "/tools on", "/tools", "two", "/cache")
    shown = talked(monkeypatch, session, *first, "/mode deep", "/tools maybe", "/sing", "", "  ", "/quit", "never read")
    assert "now none: none, low, high, max" in shown and "now off: calculate" in shown
    assert "mode none\n" in shown and "mode high\n" in shown and shown.count("tools on: calculate\n") == 2
    assert "all prompts: " in shown and "from the cache" in shown and "HCA entries" in shown
    assert "mode = 'deep' is none of profile 0731" in shown and "give on or off." in shown
    assert "There is no such command" in shown
    assert [message["content"] for message in session.messages] == ["one", "a", "two", "b"]


def test_a_message_that_begins_with_a_slash_is_typed_behind_a_space(monkeypatch):
    session = session_of(f"a{E}")
    assert "no such command" not in talked(monkeypatch, session, " /quit it")
    assert session.messages[0]["content"] == " /quit it"


def test_new_forgets_and_a_refused_text_changes_nothing(monkeypatch, tmp_path):
    session = session_of(f"a{E}")
    shown = talked(monkeypatch, session, "one", "<think>", "/new", "two", file=tmp_path / "talk.json")
    assert "'<think>', a marker of the chat format" in shown
    assert [message["content"] for message in session.messages] == ["two", "a"]
    assert (tmp_path / "talk.json").read_text(encoding="utf-8").count('"role"') == 2


def test_ctrl_c_at_the_prompt_begins_the_line_anew_and_ctrl_d_ends(monkeypatch):
    session = session_of(f"a{E}")
    assert talked(monkeypatch, session, KeyboardInterrupt, "one", KeyboardInterrupt) == "\nanswer:\na\n\n\n"


def test_ctrl_c_within_a_reply_ends_the_reply_and_saves_what_there_is(monkeypatch, tmp_path):
    session = session_of(f"abcdefghij{E}", f"b{E}")
    show = Chat.show

    def press(self, delta):
        show(self, delta)
        if len(session.kept.ids) and not pressed:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))

    pressed = []
    monkeypatch.setattr(Chat, "show", press)
    before = signal.getsignal(signal.SIGINT)
    shown = talked(monkeypatch, session, "one", "two", file=tmp_path / "talk.json")
    assert "Stopped.\n" in shown and "answer:\nb\n" in shown
    assert signal.getsignal(signal.SIGINT) is before
    assert 0 < len(session.messages[1]["content"]) < 10
    assert '"b"' in (tmp_path / "talk.json").read_text(encoding="utf-8")


TEXT = (
    "a word, ein-sehr-langes-Wort-das-nicht-passt und 漢字漢字漢字漢字漢字漢字\n    indented  twice, \te\u0301\n\nend"
)


@pytest.mark.parametrize("width", [40, 20, 10])
def test_no_line_is_longer_than_the_terminal_is_wide(monkeypatch, width):
    session = session_of(f"abc{E}")
    shown = talked(
        monkeypatch, session, "/help", "/cache", "/tools", "/mode deep", "one", "/cache", "<think>", width=width
    )
    assert max(map(cells, shown.splitlines())) <= width
    for pieces in ([TEXT], TEXT):
        out = io.StringIO()
        screen = Screen(out, lambda: width, False)
        for piece in pieces:
            screen.piece("answer", piece)
        screen.end()
        assert max(map(cells, out.getvalue().splitlines())) <= width
        said = "".join(out.getvalue().removeprefix("answer:").split())
        assert said == "".join(TEXT.split())
        assert width < 40 or "\n    indented  twice" in out.getvalue()


@pytest.mark.parametrize("text", ["is '<｜end▁of▁sentence｜>' cannot stand here", "漢字 かな 漢字かな 漢字", "a\0b c"])
def test_a_line_of_the_programs_own_counts_columns_and_not_characters(text):
    for width in range(10, 50):
        out = io.StringIO()
        Screen(out, lambda width=width: width, False).line(text)
        assert max(map(cells, out.getvalue().splitlines())) <= width
        assert "".join(out.getvalue().split()) == harmless("".join(text.split()))


def test_a_new_conversation_speaks_of_the_file_where_there_is_one(monkeypatch, tmp_path):
    assert talked(monkeypatch, session_of(), "/new") == "A new conversation.\n\n"
    shown = talked(monkeypatch, session_of(), "/new", file=tmp_path / "talk.json")
    assert shown.startswith("A new conversation; the file is replaced after its first turn.\n")


def test_a_word_that_fits_exactly_is_followed_by_the_next_line_at_its_beginning():
    out = io.StringIO()
    screen = Screen(out, lambda: 10, False)
    screen.piece("answer", "abcdefghij klm nopqrstuvw")
    screen.end()
    assert out.getvalue() == "answer:\nabcdefghij\nklm \nnopqrstuvw\n"


@pytest.mark.slow
def test_without_a_terminal_nothing_is_broken_and_nothing_coloured(monkeypatch):
    text = "word " * 20
    shown = talked(monkeypatch, session_of(f"{text}{E}"), "one")
    assert text in shown and "\x1b" not in shown


def test_colours_are_there_and_gone_with_no_color(monkeypatch):
    assert "\x1b[2m" in talked(monkeypatch, session_of(f"r</think>a{E}", mode="high"), "one", width=40, colours=True)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen.of(Terminal()).colours
    for name, value in {"NO_COLOR": "1", "TERM": "dumb"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not Screen.of(Terminal()).colours
    assert not Screen.of(io.StringIO()).colours and Screen.of(io.StringIO()).columns() == 0


def test_what_a_model_writes_does_not_steer_the_terminal():
    assert harmless("a\x1b[2Jb\rc\x07\n") == "a␛[2Jb␍c␇\n"
    assert harmless("👩\u200d💻 \u202e") == "👩\u200d💻 �"
    assert not any(sign in harmless("\x1b[2J\r\x07\x7f\u202e") for sign in "\x1b\r\x07\x7f\u202e")


# --- the command ---


def folder_of(tmp_path, tokenizer):
    """A saved scripted model's weights, with a tokenizer."""
    v4.save(Scripted(), tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    return str(tmp_path)


def refused(capsys, *words):
    """What a command that cannot be carried out says."""
    assert main(["chat", *words]) == 2
    return capsys.readouterr().err


def test_the_command_talks_with_the_model_of_a_folder(monkeypatch, capsys, tmp_path):
    folder, file = folder_of(tmp_path / "model", TOKENIZER), tmp_path / "talk.json"
    typed = iter(["hello", "/cache"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or (_ for _ in ()).throw(EOFError))
    words = [
        "chat",
        "--model",
        folder,
        "--tokens",
        "5",
        "--seed",
        "3",
        "--mode",
        "max",
        "--tools",
        "--history",
        str(file),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("/help lists the commands.\n") and "cache: " in said
    assert '"mode": "max"' in file.read_text(encoding="utf-8")
    assert main(words) == 0
    assert "Resumed after " in capsys.readouterr().out


def test_without_a_folder_it_talks_with_the_shipped_model(monkeypatch, capsys):
    typed = iter(["/help", "sum 31415926", "/new", "/mode max", "sum 31415926"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or (_ for _ in ()).throw(EOFError))
    assert main(["chat"]) == 0  # the likeliest tokens, where no temperature is given
    said = capsys.readouterr().out
    assert "This small model knows two tasks" in said
    assert "now none: none, high, max" in said  # the profile of its chat_texts.json
    assert said.count("answer:\n") == 2 and said.count("thinking:\n") == 1 and "no reply" not in said


def test_what_the_command_cannot_do_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chat, "SHIPPED_CHAT", tmp_path / "none")
    assert "came without a chat model; name the folder of one by --model" in refused(capsys)
    base = folder_of(tmp_path / "base", v4.pretrained_tokenizer())
    assert "has no token '<｜begin▁of▁sentence｜>', so its model was not trained to chat" in refused(
        capsys, "--model", base
    )
    folder = folder_of(tmp_path / "model", TOKENIZER)
    (tmp_path / "talk.json").write_text("{", encoding="utf-8")
    assert "talk.json: cannot be read" in refused(capsys, "--model", folder, "--history", str(tmp_path / "talk.json"))
    (tmp_path / "model" / "chat_texts.json").write_text('{"loud": ""}', encoding="utf-8")
    assert "['loud'] cannot be used" in refused(capsys, "--model", folder)
    (tmp_path / "model" / "chat_texts.json").write_text('{"profile": "preview"}', encoding="utf-8")
    assert "mode = 'low' is none of profile preview" in refused(capsys, "--model", folder, "--mode", "low")
