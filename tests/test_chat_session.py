"""A conversation with a model that says what a script tells it: messages, calls, the kept cache, the history."""

import json

import pytest
import torch

import minidsv4 as v4
from minidsv4.serve import chat_session
from minidsv4.serve.chat_format import Texts, chat_tokenizer, encode
from minidsv4.serve.chat_history import History
from minidsv4.serve.chat_session import Sampling, Session
from minidsv4.serve.kept_cache import MOST_MARKS, KeptCache, n_common
from minidsv4.train.tokenizer import Tokenizer

CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="calculate">\n'
    '<｜DSML｜parameter name="expression" string="true">{}</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
TOKENIZER = chat_tokenizer(Tokenizer.train([CALL] * 9, 400))
CONFIG = v4.Config.tiny().replace(vocab_size=len(TOKENIZER), num_hash_layers=1)
GREEDY = Sampling(n_tokens=200, temperature=0)
E = "<｜end▁of▁sentence｜>"


def never():
    return False


class Scripted(v4.Model):
    """A real model, with its real cache, whose likeliest next token is the script's: replies by their number."""

    def __init__(self, *replies):
        torch.manual_seed(0)
        super().__init__(CONFIG)
        self.replies = [TOKENIZER.encode_marked(reply) for reply in replies]
        self.seen = []
        self.n_read = 0

    def forward(self, ids_BT, cache=None, last=None):
        del self.seen[cache.n_tokens :]
        logits_BTV = super().forward(ids_BT, cache, last)
        self.seen += ids_BT[0].tolist()
        self.n_read += ids_BT.shape[1]
        openers = [place for place, token in enumerate(self.seen) if token == TOKENIZER.markers["<｜Assistant｜>"]]
        number = len(openers) - 1
        written = len(self.seen) - openers[-1] - 2 if openers else -1
        if 0 <= written < len(self.replies[number]):
            logits_BTV = torch.zeros_like(logits_BTV)
            logits_BTV[..., self.replies[number][written]] = 9.0
        return logits_BTV


def session_of(*replies, mode="none", tools=False, sampling=GREEDY):
    """A session with a scripted model."""
    session = Session(Scripted(*replies), TOKENIZER, sampling, Texts(exhaustive="Think.", tools_usage="Call."))
    session.mode, session.with_tools = mode, tools
    return session


def said(session, text, stopped=never):
    """What a turn shows, by kind, and how it ended."""
    shown = []
    ending = session.say(text, lambda delta: shown.append((delta.kind, delta.text)), stopped)
    joined = {}
    for kind, piece in shown:
        joined[kind] = joined.get(kind, "") + piece
    return joined, ending


def test_a_turn_shows_thinking_and_answer_and_becomes_two_messages():
    session = session_of(f"two and three</think>5 é😀{E}", mode="high")
    assert said(session, "2+3?") == ({"reasoning": "two and three", "content": "5 é😀"}, "")
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    assert session.messages[1]["reasoning"] == "two and three"


def test_a_call_runs_and_its_result_is_answered():
    session = session_of(f"so{CALL.format('2*(3+4)')}{E}", f"It is 14.{E}", tools=True)
    shown, ending = said(session, "what is 2*(3+4)?")
    assert ending == "" and shown["result"] == "14" and shown["content"] == "soIt is 14."
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
    assert session.messages[2] == {"role": "tool", "content": "14", "tool_call_id": "call_0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "result"),
    [
        (CALL.format("1/0"), "error: calculate: character 3: a division by zero has no value"),
        (CALL.format("1").replace("calculate", "erase"), "error: there is no tool 'erase'"),
        (
            CALL.format("1").replace('"expression"', '"sum"'),
            "error: calculate() got an unexpected keyword argument 'sum'",
        ),
    ],
)
def test_a_call_that_cannot_run_gets_its_error_as_the_result(call, result):
    session = session_of(f"{call}{E}", f"sorry{E}", tools=True)
    shown, ending = said(session, "q")
    assert (shown["result"], shown["content"], ending) == (result, "sorry", "")


@pytest.mark.slow
def test_a_tool_that_is_off_does_not_run_and_calls_without_end_are_ended(monkeypatch):
    monkeypatch.setattr(chat_session, "MOST_ROUNDS", 2)
    session = session_of(f"{CALL.format('1')}{E}", f"a{E}")
    assert said(session, "q")[0]["result"] == "error: there is no tool 'calculate'"
    session = session_of(*[f"{CALL.format('1')}{E}"] * 2, tools=True)
    assert said(session, "q")[1] == "The model called tools 2 times and did not answer."


def test_with_tools_every_prompt_is_read_once():
    session = session_of(f"r</think>a{E}", f"s</think>b{E}", f"t</think>c{E}", mode="high", tools=True)
    for text in "one", "two", "three":
        said(session, text)
    whole = TOKENIZER.encode_marked(session._text(session.messages))
    assert session.model.n_read == len(whole) - 1 == session.kept.cache.n_tokens  # all but the last EOS
    assert session.kept.n_hit > 0 and session.kept.last[1] > 0


def test_tokens_that_the_model_chose_are_kept_where_the_tokenizer_would_choose_others():
    session = session_of("", f"b{E}", tools=True)
    spelt = [TOKENIZER.encode(letter)[0] for letter in "expression"]
    assert TOKENIZER.encode("expression") != spelt
    session.model.replies[0] = [*spelt, TOKENIZER.eos_id]
    said(session, "one")
    in_cache = list(session.kept.ids)
    said(session, "two")
    assert session.messages[1]["content"] == "expression" and in_cache[-10:] == spelt
    assert session.kept.last[1] == len(in_cache)


def test_without_tools_what_is_read_again_begins_where_thinking_did():
    session = session_of(f"rrrr</think>a{E}", f"s</think>b{E}", mode="high")
    said(session, "one")
    first = TOKENIZER.encode_marked(encode(session.messages[:1], mode="high", texts=session.texts))
    said(session, "two")
    assert session.kept.last[1] == len(first) - 1  # all but the opener, <think> then and </think> now


@pytest.mark.slow
def test_a_kept_cache_gives_the_logits_of_a_new_one_in_any_order_of_texts():
    torch.manual_seed(1)
    model = v4.Model(CONFIG).double()
    kept, chance = KeptCache(model), torch.Generator().manual_seed(2)
    text = torch.randint(CONFIG.vocab_size, (400,), generator=chance).tolist()
    n_hit = 0
    for _ in range(7):
        back, size = torch.randint(1, 40, (2,), generator=chance).tolist()
        text = text[:-back] + torch.randint(CONFIG.vocab_size, (size,), generator=chance).tolist()
        logits_V = kept.read(text)
        expected = model(torch.tensor([text]), last=1)[0, -1]
        torch.testing.assert_close(logits_V, expected, rtol=0, atol=1e-10)  # float64
        assert kept.cache.n_tokens == len(text) == len(kept.ids)
        n_hit += kept.last[1]
        text += [3, 4]
        for token in text[-2:]:
            logits_V = kept.append([token])
        torch.testing.assert_close(logits_V, model(torch.tensor([text]), last=1)[0, -1], rtol=0, atol=1e-10)
    assert n_hit == kept.n_hit > 0 and len(kept.marks) <= MOST_MARKS + 1


def test_a_text_that_is_read_again_and_one_that_ends_earlier_give_their_own_logits():
    model = v4.Model(CONFIG).double()
    kept = KeptCache(model)
    text = [0, 5, 6, 7, 8, 9]
    for ids in (text, text, text[:-1], text[:2], text[:1]):
        expected = model(torch.tensor([ids]), last=1)[0, -1]
        torch.testing.assert_close(kept.read(ids), expected, rtol=0, atol=1e-10)  # float64
        assert kept.ids == ids


def test_a_cache_that_is_out_of_step_is_begun_anew():
    model = v4.Model(CONFIG)
    kept = KeptCache(model)
    kept.read([1, 2, 3])
    kept.ids.append(9)
    kept.read([1, 2, 3, 4])
    assert kept.cache.n_tokens == 4 and kept.last == (4, 0)
    assert n_common([1, 2, 3], [1, 2, 4]) == 2 and n_common([], [1]) == 0


def test_a_stop_keeps_what_was_written_and_the_next_turn_goes_on():
    session = session_of(f"abcdef{E}", f"well{E}")
    asked = iter(range(100))
    shown, ending = said(session, "one", lambda: next(asked) > 3)
    assert ending == "Stopped." and shown["content"] == session.messages[1]["content"] != ""
    assert said(session, "two") == ({"content": "well"}, "")


def test_a_stop_before_the_first_token_leaves_the_question_and_the_next_one_joins_it():
    session = session_of(f"both{E}")
    assert said(session, "one", lambda: True) == ({}, "Stopped.")
    assert [message["role"] for message in session.messages] == ["user"]
    assert said(session, "two") == ({"content": "both"}, "")
    assert "one\n\ntwo" in session._text(session.messages)


def test_a_reply_that_is_too_long_or_no_reply_is_kept_as_far_as_it_came():
    session = session_of(f"abcdef{E}", f"fine<｜User｜>{E}", f"good{E}", sampling=Sampling(3, 0))
    assert said(session, "one")[1] == "Cut after 3 tokens."
    shown, ending = said(session, "two")
    assert ending == "Cut after 3 tokens." or "what is no reply" in ending
    session = session_of(f"fine<｜User｜>{E}", f"good{E}")
    shown, ending = said(session, "one")
    assert "what is no reply (parse: character 4: '<｜User｜>'" in ending
    assert session.messages[-1]["content"] == "fine" == shown["content"]
    assert said(session, "two") == ({"content": "good"}, "")


def test_a_text_that_cannot_be_sent_leaves_the_conversation_as_it_was():
    session = session_of(f"a{E}", f"b{E}")
    said(session, "one")
    before = list(session.messages)
    with pytest.raises(ValueError, match="a marker of the chat format"):
        said(session, "<｜Assistant｜>")
    with pytest.raises(ValueError, match="goes beyond max_position_embeddings"):
        said(session, "x" * CONFIG.max_position_embeddings)
    assert session.messages == before
    assert said(session, "two") == ({"content": "b"}, "")


def test_a_model_that_was_not_made_to_chat_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has no token '<｜begin▁of▁sentence｜>'"):
        Session(Scripted(), v4.pretrained_tokenizer())
    small = v4.Model(CONFIG.replace(vocab_size=100))
    with pytest.raises(ValueError, match="tokens and the model a vocab_size of 100"):
        Session(small, TOKENIZER)


# --- history ---


def test_a_conversation_is_saved_and_resumed(tmp_path):
    file = tmp_path / "talk.json"
    first = session_of(f"r</think>a é{E}", mode="high", tools=True)
    said(first, "one")
    History(file).save(first)
    second = session_of(f"no{E}", f"s</think>b{E}")
    history = History(file)
    assert history.resume(second) == 2
    assert (second.messages, second.mode, second.with_tools) == (first.messages, "high", True)
    assert said(second, "two")[0]["content"] == "b"
    history.save(second)
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_no_history_is_an_empty_one_and_none_is_kept_without_a_name(tmp_path):
    session = session_of()
    assert History(tmp_path / "new.json").resume(session) == 0 == History(None).resume(session)
    History(None).save(session)
    History(tmp_path / "new.json").save(session)
    assert History(tmp_path / "new.json").resume(session) == 0


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "is no chat of this version"),
        ('{"format": 2, "messages": [], "mode": "none", "tools": false}', "is no chat of this version"),
        ('{"format": 1, "messages": 3, "mode": "none", "tools": false}', "messages = 3 are none"),
        ('{"format": 1, "messages": [{"role": "user"}], "mode": "deep", "tools": false}', "mode = 'deep' is none"),
        ('{"format": 1, "messages": [], "mode": "deep", "tools": false}', "mode = 'deep' is none"),
        ('{"format": 1, "messages": [], "mode": "none", "tools": 1}', "tools = 1 is no switch"),
        (
            '{"format": 1, "messages": [{"role": "user", "content": "<think>"}], "mode": "none", "tools": true}',
            "marker",
        ),
    ],
)
def test_a_file_that_is_no_history_is_refused_and_stays(tmp_path, held, says):
    file = tmp_path / "talk.json"
    file.write_text(held, encoding="utf-8")
    session = session_of()
    with pytest.raises(ValueError, match=f"^--history .*talk.json: .*{says}"):
        History(file).resume(session)
    assert file.read_text(encoding="utf-8") == held
    assert (session.messages, session.mode, session.with_tools) == ([], "none", False)


def test_a_history_needs_a_name_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*missing.*; make it first"):
        History(tmp_path / "missing" / "talk.json").resume(session_of())
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="--history: .* names no file"):
            History(name)
    with pytest.raises(ValueError, match="cannot be read"):
        History(tmp_path).resume(session_of())


def test_a_file_that_another_program_changed_is_not_overwritten(tmp_path):
    file = tmp_path / "talk.json"
    session, history = session_of(), History(file)
    history.save(session)
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="was changed by another program"):
        history.save(session)
    assert file.read_text(encoding="utf-8") == "mine"
    with pytest.raises(ValueError, match="was changed by another program"):
        History(file).save(session)  # a file that it never read is not its own
