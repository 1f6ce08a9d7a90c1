"""`python -m minidsv4 chat`: a conversation in the terminal, with thinking, a tool, and a cache kept between turns."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from minidsv4 import options
from minidsv4.options import readable
from minidsv4.serve.chat_format import PROFILES, Delta, Texts
from minidsv4.serve.chat_history import History
from minidsv4.serve.chat_session import TOOLS, Sampling, Session
from minidsv4.serve.completion import add_sampling_options, with_tokenizer
from minidsv4.serve.screen import Screen
from minidsv4.train.ship import SHIPPED_CHAT

YOU = "you> "
KINDS = {"reasoning": "thinking", "content": "answer"}  # of deltas, as the screen names them
SHIPPED_KNOWS = (
    "This small model knows two tasks, both modulo 10: sum 31415926 adds digits, run IHNTITHN follows instructions. "
    "Type /mode high first, as without thinking it guesses, and /new before each question."
)
HELP = """/mode WORD  how to think, now {mode}: {modes}
/tools on, /tools off  now {tools}: {names}
/cache  its bytes, and what it saved
/new  forget the conversation
/quit, or Ctrl-D  end; Ctrl-C ends a reply"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 chat`."""
    folder = "folder of a chat model, whose tokenizer.json has the markers; the shipped one if not given"
    parser.add_argument("--model", type=options.folder, help=folder)
    history = "file to resume from, if it is there, and to save to after every turn"
    parser.add_argument("--history", type=options.folder, help=history)
    modes = sorted({mode for modes in PROFILES.values() for mode in modes})
    parser.add_argument("--mode", choices=modes, help="how to think; none if neither given nor in the history")
    parser.add_argument("--tools", action="store_true", help="let the model call the calculator")
    parser.add_argument("--tokens", type=options.whole(1), default=512, help="of a reply, at most so many")
    add_sampling_options(parser, temperature=0.0)  # a small model's unlikely tokens are mistakes


def main(arguments: argparse.Namespace) -> int:
    """Talk until Ctrl-D."""
    torch.set_num_threads(1)
    session = opened(arguments)
    history = History(arguments.history)
    screen = Screen.of()
    n_messages = history.resume(session)
    if arguments.mode is not None:
        session.set_mode(arguments.mode)
    session.with_tools |= arguments.tools
    screen.line(f"/help lists the commands.{f' Resumed after {n_messages} messages.' if n_messages else ''}")
    if arguments.model is None:
        screen.line(SHIPPED_KNOWS)
    Chat(session, history, screen).run()
    return 0


def opened(arguments: argparse.Namespace) -> Session:
    """The session with the model that the options name.

    raises  ValueError where there is none, or one that was not trained to chat
    """
    folder = arguments.model
    if folder is None:
        if not (SHIPPED_CHAT / "config.json").is_file():
            raise ValueError("chat: this copy of minidsv4 came without a chat model; name the folder of one by --model")
        folder = str(SHIPPED_CHAT)
    model, tokenizer = with_tokenizer(folder)
    sampling = Sampling(arguments.tokens, arguments.temperature, arguments.top_p, arguments.seed)
    return Session(model.use(arguments.ops), tokenizer, sampling, Texts.read(folder))


class Chat:
    """The loop: a line of the user's, which is a command or a message, and what comes of it."""

    def __init__(self, session: Session, history: History, screen: Screen):
        self.session, self.history, self.screen = session, history, screen
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/mode": self.mode,
            "/tools": self.tools,
            "/cache": self.cache,
            "/new": self.new,
        }

    def run(self) -> None:
        """Take lines until there are no more, or /quit."""
        with suppress(ImportError):
            import readline  # noqa: F401  # arrow keys, where Python has it
        while (line := self.asked()) is not None:
            word, _, rest = line.rstrip().partition(" ")
            if word in ("/quit", "/exit"):
                return
            try:
                if word.startswith("/"):
                    self.commands.get(word, self.unknown)(rest.strip())
                elif line.strip():
                    self.answer(line)
            except ValueError as error:
                self.screen.line(str(error))

    def asked(self) -> str | None:
        """The next line that the user types; None at the end of the input. Ctrl-C begins the line anew."""
        while True:
            try:
                return input(YOU if sys.stdin.isatty() else "")
            except EOFError:
                self.screen.line()
                return None
            except KeyboardInterrupt:
                self.screen.line()

    def answer(self, line: str) -> None:
        """Let the model answer, and save."""
        with stop_by_ctrl_c() as stopped:
            try:
                ending = self.session.say(line, self.show, stopped)
            finally:
                self.screen.end()
            if ending:
                self.screen.line(ending)
            self.save()

    def save(self) -> None:
        """Save the conversation, or say why not."""
        try:
            self.history.save(self.session)
        except OSError as error:
            self.screen.line(f"The history cannot be written ({error.strerror}); it is as it was.")

    def show(self, delta: Delta) -> None:
        """One piece of what the model writes."""
        if delta.kind in KINDS:
            self.screen.piece(KINDS[delta.kind], delta.text)
        elif delta.kind == "call":
            self.screen.piece("calls", f"{delta.text} ")
        elif delta.kind == "called":
            self.screen.piece("calls", f"{delta.text}\n")
        elif delta.kind == "result":
            self.screen.piece("gives", delta.text)

    # --- commands ---

    def help(self, _rest: str) -> None:
        """What can be typed."""
        modes = ", ".join(PROFILES[self.session.texts.profile])
        tools = "on" if self.session.with_tools else "off"
        self.screen.line(HELP.format(mode=self.session.mode, modes=modes, tools=tools, names=", ".join(TOOLS)))

    def mode(self, word: str) -> None:
        """Think in another way."""
        if word:
            self.session.set_mode(word)
        self.screen.line(f"mode {self.session.mode}")

    def tools(self, word: str) -> None:
        """Switch the tools on or off, or list them."""
        if word not in ("", "on", "off"):
            raise ValueError(f"/tools {word}: give on or off.")
        if word:
            self.session.with_tools = word == "on"
        self.screen.line(f"tools {'on' if self.session.with_tools else 'off'}: {', '.join(TOOLS)}")

    def cache(self, _rest: str) -> None:
        """The cache's bytes by kind, and how much of the prompts it had."""
        kept = self.session.kept
        self.screen.line(f"cache: {kept.cache.n_tokens:,} tokens, {readable(kept.cache.n_bytes())}")
        for kind, n_bytes in kept.cache.report().items():
            self.screen.line(f"  {kind:14} {readable(n_bytes):>8}")
        for name, (asked, hit) in {"last prompt": kept.last, "all prompts": (kept.n_asked, kept.n_hit)}.items():
            self.screen.line(f"{name}: {asked:,} tokens, {hit:,} from the cache ({hit / max(1, asked):.0%})")

    def new(self, _rest: str) -> None:
        """Forget the conversation."""
        self.session.clear()
        replaced = "; the file is replaced after its first turn" if self.history.path else ""
        self.screen.line(f"A new conversation{replaced}.")

    def unknown(self, _rest: str) -> None:
        """What is said of any other command."""
        self.screen.line("There is no such command; /help lists them. A message may begin with a space.")


@contextmanager
def stop_by_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is only noted; yields a function that says whether it was pressed."""
    pressed: list[int] = []

    def note(number: int, _frame: object) -> None:
        pressed.append(number)

    before = signal.getsignal(signal.SIGINT)
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)
