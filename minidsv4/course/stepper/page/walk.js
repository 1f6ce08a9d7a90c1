// Where the reader stands in the trace, and where each way of stepping leads. No drawing here.
"use strict";

const walk = (() => {
  const { calls, steps, values } = window.STEPPER;
  const depth = (step) => calls[steps[step].call].depth;
  const last = steps.length - 1;
  let here = 0;

  // The next step, going by `direction`, that lies no deeper than `limit`; the end of the walk where there is none.
  function seek(direction, limit) {
    let step = here + direction;
    while (step > 0 && step < last && depth(step) > limit) step += direction;
    return Math.min(Math.max(step, 0), last);
  }

  // Names and values of the current function at a step: every change since its first step.
  function variables(step) {
    const found = new Map();
    for (let earlier = firstOf(steps[step].call); earlier <= step; earlier += 1) {
      if (steps[earlier].call !== steps[step].call) continue;
      for (const [name, row] of Object.entries(steps[earlier].changed)) found.set(name, row);
    }
    return found;
  }

  const firstOf = (call) => calls[call].first;

  // The step before this one in the same function, or -1.
  function before(step) {
    for (let earlier = step - 1; earlier >= firstOf(steps[step].call); earlier -= 1) {
      if (steps[earlier].call === steps[step].call) return earlier;
    }
    return -1;
  }

  // The calls that are running at a step, the outermost first.
  function stack(step) {
    const running = [];
    let call = steps[step].call;
    while (call >= 0) {
      running.unshift(call);
      call = calls[call].from < 0 ? -1 : steps[calls[call].from].call;
    }
    return running;
  }

  return {
    calls, steps, values, last, variables, before, stack, firstOf,
    here: () => here,
    go: (step) => { here = Math.min(Math.max(Math.round(step) || 0, 0), last); },
    into: () => Math.min(here + 1, last),
    back: () => Math.max(here - 1, 0),
    over: () => seek(1, depth(here)),
    backOver: () => seek(-1, depth(here)),
    out: () => seek(1, depth(here) - 1),
  };
})();
