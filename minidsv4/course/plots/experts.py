"""Picture of notebook 07: loads of experts that a bias rule balances."""

from matplotlib.figure import Figure

from minidsv4.course.plots.style import COLOURS, HEADING


def bias_rule(without, with_rule, bias_TE):
    """MaxVio step by step without and with the bias rule, and the biases that the rule moved.

    without, with_rule  MaxVio of each step
    bias_TE             biases after each step, one column an expert
    """
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    left.plot(without, color=COLOURS["masked"], linestyle="--", label="no rule")
    left.plot(with_rule, color=COLOURS["compressed"], linestyle="-", label="bias rule")
    left.set(xlabel="step", ylabel="MaxVio", ylim=(0, None))
    left.set_title("The fullest expert's overload", fontweight="normal")
    left.legend(loc="center right")
    right.plot(bias_TE, color=COLOURS["query"], linestyle="-", linewidth=1)
    right.set(xlabel="step", ylabel="bias, in units of the score")
    right.set_title(f"The {bias_TE.shape[1]} biases that did it", fontweight="normal")
    title = "Each bias follows its expert's load, until the loads are even"
    figure.suptitle(title, **HEADING)
    return figure
