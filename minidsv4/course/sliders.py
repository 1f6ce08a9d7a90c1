"""A picture that follows sliders and menus where a reader sits in front of it, and a plain picture elsewhere.

The site has no kernel: for it, all pictures are drawn ahead (frames.py).
"""

import base64
import html
import re
from numbers import Real

from minidsv4.course.frames import frames_folder, write_frames
from minidsv4.course.live import is_live, show_live


def explore(draw, units=None, start=None, **ranges):
    """A picture of the start values; in a live notebook one picture below sliders and menus that draw it anew.

    draw     function from one value of each range to a Picture
    units    name of a range = the unit that stands behind its numbers, such as "tokens"
    start    name of a range = the value that the static picture has; where it is left out, the first
    ranges   name of an argument = the values it may take: ascending numbers give a slider, words give a menu
    returns  the Picture of the start values; None in a live notebook, where widgets are displayed
    raises   ValueError for an empty range, numbers that do not ascend, numbers mixed with words, a unit or start of
             no range, and a start that its range does not hold
    """
    ranges = {name: list(values) for name, values in ranges.items()}
    units, start = dict(units or {}), dict(start or {})
    for name, values in ranges.items():
        _check_range(name, values)
        first = start.setdefault(name, values[0])
        if first not in values:
            raise ValueError(f"start has {name}={first!r}, it should be one of {values}")
    for field, named in (("units", units), ("start", start)):
        if strange := [name for name in named if name not in ranges]:
            raise ValueError(f"{field} names {', '.join(strange)}, the ranges are {', '.join(ranges)}")
    if folder := frames_folder():
        write_frames(folder, draw, ranges, start, lambda name, value: _label(value, units.get(name)))
    if not is_live():
        return draw(**start)
    _show_widgets(draw, ranges, units, start)


def _check_range(name, values):
    """Raise a ValueError where values are no range."""
    if not values:
        raise ValueError(f"{name}={values!r} should hold at least one value")
    kinds = {_is_number(value) for value in values}
    if len(kinds) > 1:
        raise ValueError(f"{name}={values!r} mixes numbers with words, it should hold numbers only or words only")
    if kinds == {True} and any(left >= right for left, right in zip(values, values[1:])):
        raise ValueError(f"{name}={values!r} should ascend, each number larger than the one before it")


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _show_widgets(draw, ranges, units, start):
    """One slider or menu for each range, above an image that follows them, its alternative text too."""
    import ipywidgets

    controls = {name: _control(name, values, units.get(name), start[name]) for name, values in ranges.items()}
    image = ipywidgets.HTML(value=_image(draw(**start)))

    def follow(_change):
        image.value = _image(draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(follow, names="value")
    show_live(ipywidgets.VBox([*controls.values(), image]), image.value)


def _control(name, values, unit, start):
    """A slider for numbers, a menu for words."""
    import ipywidgets

    kind = ipywidgets.SelectionSlider if _is_number(values[0]) else ipywidgets.Dropdown
    options = [(_label(value, unit), value) for value in values]
    extra = {"continuous_update": False} if kind is ipywidgets.SelectionSlider else {}
    look = {"style": {"description_width": "initial"}, "layout": {"width": "32em"}}
    return kind(options=options, value=start, description=name.replace("_", " "), **look, **extra)


def _label(value, unit):
    """A value as it stands beside its control."""
    return f"{value} {_counted(value, unit)}" if unit else str(value)


def _counted(value, unit):
    """The unit as it stands behind a number: 1 token, 2 tokens; rates such as tokens/s keep their s."""
    return unit[:-1] if value == 1 and re.fullmatch(r"[a-z]+s", unit) else unit


def _image(picture):
    """A Picture as an HTML element."""
    png, facts = picture._repr_png_()
    data, alt = base64.b64encode(png).decode(), html.escape(facts["alt"])
    return f'<img width="{facts["width"]}" alt="{alt}" src="data:image/png;base64,{data}">'
