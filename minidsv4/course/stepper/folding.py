"""The steps that a reader walks through: of a whole trace the part that follows the last token.

A loop shows its first and its last pass, and what it calls is followed in the last one, which is the last token's where
the loop runs over tokens. Where the same piece of code calls a function several times, the last call is followed. The
loop over layers is followed in every pass. What is left out is said in the note of the step after it.
"""

from collections import Counter

FOLLOWED_WHOLE = ("model_streams",)  # functions whose loops are followed in every pass


class Steps:
    """The steps of a trace in the order in which they ran.

    calls  one dictionary a followed call: function, line of its def, its first step, the step that made it, its depth
    steps  one dictionary each: call, line, changed {name: row of `Values`}; note where something was left out;
           result (a row) in the last step of a call
    """

    def __init__(self, root):
        self.calls, self.steps = [], []
        self._add_call(root, made_by=-1, depth=0)

    def _add_call(self, call, made_by, depth):
        """A call's own steps, each followed by those of the calls that it makes."""
        number = len(self.calls)
        first = len(self.steps)
        own = {"function": call.function, "line": call.line, "first": first, "from": made_by, "depth": depth}
        self.calls.append(own)
        known, before = {}, None
        for visit in call.visits:
            if not is_shown(call, visit):
                continue
            changed = {name: row for name, row in visit.names.items() if known.get(name) != row}
            step = {"call": number, "line": visit.line, "changed": changed}
            notes = [*loop_notes(call, visit, before), *call_notes(call, visit)]
            self.steps.append(step | ({"note": " ".join(notes)} if notes else {}))
            known, before = visit.names, visit
            made_by = len(self.steps) - 1
            if is_followed(call, visit):
                for inner in last_of_each_site(visit.calls):
                    self._add_call(inner, made_by, depth + 1)
        self.steps.append({"call": number, "line": before.line, "changed": {}, "result": call.result})


def is_shown(call, visit):
    """Whether a statement stands in the first or last pass of every loop around it, or ends one."""
    if call.function in FOLLOWED_WHOLE:
        return True
    return all(number == 0 or number >= call.last_pass(loop) for loop, number in visit.passes)


def is_followed(call, visit):
    """Whether the calls of a statement are shown: in the last pass of every loop around it."""
    if call.function in FOLLOWED_WHOLE:
        return True
    return all(number >= call.last_pass(loop) for loop, number in visit.passes)


def last_of_each_site(calls):
    """Of calls that were made by the same piece of code only the last, in the order in which they ran."""
    last = {call.site: number for number, call in enumerate(calls)}
    return [calls[number] for number in sorted(last.values())]


def loop_notes(call, visit, before):
    """Sentences on the pass that a loop's head begins, and on the passes before it that are left out."""
    if not visit.passes or visit.line not in call.loop_lines:
        return
    loop, number = visit.passes[-1]
    n_passes = call.last_pass(loop) + 1
    if number == n_passes:
        yield f"The loop is over after {n_passes} {'pass' if n_passes == 1 else 'passes'}."
        return
    earlier = dict(before.passes).get(loop) if before is not None else None
    if earlier is not None and number - earlier == 2:
        yield f"Pass {number} is left out."
    elif earlier is not None and number - earlier > 2:
        yield f"Passes {earlier + 2} to {number} are left out."
    yield f"Pass {number + 1} of {n_passes} begins."


def call_notes(call, visit):
    """Sentences on calls that are not followed."""
    if not visit.calls:
        return
    if not is_followed(call, visit):
        names = ", ".join(dict.fromkeys(inner.function for inner in visit.calls))
        yield f"What is called here ({names}) is followed in the last pass."
        return
    per_site = Counter(inner.site for inner in visit.calls)
    times = {inner.function: per_site[inner.site] for inner in visit.calls if per_site[inner.site] > 1}
    for function, n_calls in times.items():
        yield f"{function} is called {n_calls} times here, and the last call is followed."
