"""A conversation kept in a file: JSON with the messages, the mode and whether tools are on; whole at every moment."""

import hashlib
import json
from pathlib import Path

from minidsv4.files import atomic_file, given_path
from minidsv4.serve.chat_session import Session

FORMAT = 1  # of the file


class History:
    """The file of a session: `resume` reads it, `save` replaces it.

    path  None keeps nothing
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else given_path("--history", path)
        self._known = b""  # digest of the file as it was read or written last

    def resume(self, session: Session) -> int:
        """Give the session what the file holds; the number of messages, 0 where there is no file yet.

        raises  ValueError for a file that is no history: it stays as it is
        """
        if self.path is None:
            return 0
        if not self.path.parent.is_dir():
            raise ValueError(f"--history {self.path}: there is no folder {str(self.path.parent)!r}; make it first")
        if not self.path.exists():
            return 0
        try:
            held = self.path.read_bytes()
            found = json.loads(held)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"--history {self.path}: cannot be read ({error}); give another name") from None
        fields = {"format", "messages", "mode", "tools"}
        if not isinstance(found, dict) or set(found) != fields or found["format"] != FORMAT:
            raise ValueError(f"--history {self.path}: is no chat of this version; give the name of one, or a new name")
        try:
            session.resume(found["messages"], found["mode"], found["tools"])
        except ValueError as error:
            raise ValueError(f"--history {self.path}: {error}") from None
        self._known = digest(held)
        return len(session.messages)

    def save(self, session: Session) -> None:
        """Write the session, at once or not at all.

        raises  ValueError where another program has changed the file since; OSError where it cannot be written
        """
        if self.path is None:
            return
        if self.path.exists() and digest(self.path.read_bytes()) != self._known:
            raise ValueError(f"{self.path} was changed by another program; this chat is not saved there any more")
        content = {"format": FORMAT, "messages": session.messages, "mode": session.mode, "tools": session.with_tools}
        written = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
        with atomic_file(self.path) as scratch:
            scratch.write_bytes(written)
        self._known = digest(written)


def digest(held: bytes) -> bytes:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(held).digest()
