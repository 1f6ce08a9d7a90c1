"""The instructions that a request may hold, and which of them a profile adds for which mode.

The structure of the format is the released one. These texts are this package's own; a checkpoint that was trained with
others brings them in `chat_texts.json`.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from minidsv4.files import given_path
from minidsv4.serve.conversation.markers import (
    CALLS,
    DSML,
    END_CALLS,
    END_INVOKE,
    END_PARAMETER,
    END_THINK,
    INVOKE,
    PARAMETER,
    THINK,
    check_text,
)

TEXTS_FILE = "chat_texts.json"
_IN_EXAMPLES = (f"</{DSML}", f"<{DSML}", DSML, THINK, END_THINK)  # texts about tools show them
_SHOWN = f"""{CALLS}
{INVOKE}NAME">
{PARAMETER}SOME_TEXT" string="true">as it is{END_PARAMETER}
{PARAMETER}A_NUMBER" string="false">3{END_PARAMETER}
{END_INVOKE}
{END_CALLS}"""


# Which text is added for which mode, "" for none; the first thinking mode is the default of its profile. The tiers were
# encoded anew after the preview: one word means two prompts.
PROFILES = {
    "preview": {"none": "", "high": "", "max": "exhaustive"},
    "0731": {"none": "", "low": "", "high": "exhaustive", "max": "stronger"},
}


@dataclass(frozen=True)
class Texts:
    """The free texts of a request, and the profile that says which of them a mode adds.

    exhaustive       asks for thinking without shortcuts: `max` of the preview, `high` since
    stronger         asks for more than that: `max` since
    tools_usage      how a tool is called
    tools_schemas    stands over the schemas, which follow one a line
    tools_closing    stands below them
    response_format  stands over the schema of the reply
    profile          one of `PROFILES`
    """

    exhaustive: str = (
        "Think until nothing is left open. Take the problem apart, follow every case to its end, look for an example "
        "that breaks each step, and write down what you discard and why. Answer after that."
    )
    stronger: str = (
        "Think for as long as the problem has anything left to give; length does not matter. Take it apart, follow "
        "every case to its end, and look for an example that breaks each step. Then solve it a second time by another "
        "road, explain every difference between the two, and answer once both agree."
    )
    tools_usage: str = (
        "Functions are at your service. To call some of them, close your turn with a block of this form, an invoke for "
        f'each call:\n\n{_SHOWN}\n\nText is written as it is and marked string="true"; whatever else is written in '
        'JSON and marked string="false". The results come with the next turn.'
    )
    tools_schemas: str = "### Schemas"
    tools_closing: str = "Use these functions only, with the parameters of their schemas."
    response_format: str = "Your reply is a single JSON value of this schema, with nothing around it:"
    profile: str = "0731"

    def __post_init__(self) -> None:
        if self.profile not in [*PROFILES]:
            raise ValueError(f"chat texts: profile = {self.profile!r} is not known; give one of {', '.join(PROFILES)}")
        for field in fields(self):
            allowed = _IN_EXAMPLES if field.name.startswith("tools_") else ()
            check_instruction(field.name, getattr(self, field.name), allowed)

    @classmethod
    def read(cls, path: str | Path) -> "Texts":
        """The texts of a file, or of `chat_texts.json` in a folder; what it does not name stays ours.

        path    a JSON object of strings; a folder without the file has none to name
        raises  ValueError for a file that cannot be read, an unknown name, or a text that cannot be used
        """
        path = given_path("chat texts", path)
        file = path / TEXTS_FILE if path.is_dir() else path
        if path.is_dir() and not file.exists():
            return cls()
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"chat texts: {file.name} cannot be read ({error}); give a JSON object of texts") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or not set(given) <= set(names):
            wrong = sorted(set(given) - set(names)) if isinstance(given, dict) else given
            raise ValueError(f"chat texts: {file.name}: {wrong!r} cannot be used; the names are {', '.join(names)}")
        return cls(**given)


def check_instruction(name: str, text: object, allowed: tuple[str, ...]) -> None:
    """Refuse a text that is empty or holds markers, but those in `allowed`."""
    where = f"chat texts: {name}"
    plain = check_text(where, text, ())
    for marker in allowed:
        plain = plain.replace(marker, " ")
    if not check_text(where, plain).strip():
        raise ValueError(f"{where} is empty; leave the name out to keep the text of the package")


TEXTS = Texts()


def added_text(profile: str, mode: str, texts: Texts = TEXTS) -> str:
    """The instruction that this mode adds right after BOS, "" where it adds none.

    raises  ValueError for a profile or a mode that there is not
    """
    if profile not in [*PROFILES]:
        raise ValueError(f"encode: profile = {profile!r} is not known; give one of {', '.join(PROFILES)}")
    modes = PROFILES[profile]
    if mode not in [*modes]:
        raise ValueError(f"encode: mode = {mode!r} is none of profile {profile}; give one of {', '.join(modes)}")
    return getattr(texts, modes[mode]) if modes[mode] else ""
