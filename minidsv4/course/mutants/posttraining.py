"""Mistakes in post-training, all of which still train."""

from minidsv4.course.mutants.museum import trap
from minidsv4.posttrain import distill, grpo
from minidsv4.posttrain.rows import picked


@trap(
    at=[(grpo, "advantages")],
    symptom="Easy problems become easier; what is hard is never praised, however good its best reply is.",
    killed_by=("a_reply_is_compared_with_its_own_group",),
)
def compared_with_everybody(right, reward_B, group):
    """A reply's reward is compared with those of the whole batch, not with those of its problem."""
    return right(reward_B, len(reward_B))


@trap(
    at=[(grpo.Rewards, "of")],
    symptom="Replies become short at once, and later wrong: not to think is the cheapest answer.",
    killed_by=("a_wrong_answer_is_worth_nothing_however_short",),
)
def thinking_charged_to_wrong_answers(right, rewards, mode, found):
    """The price of thinking is taken from every reply, also from one that earned nothing."""
    return float(found.right) - rewards.price[mode] * found.n_thought


@trap(
    at=[(distill, "full_kl")],
    symptom="The student covers all that its teachers might say, and says what neither would.",
    killed_by=("the_divergence_weighs_by_the_student",),
)
def forward_kl(right, student_TV, teacher_TV):
    """KL(teacher || student) in place of KL(student || teacher)."""
    return right(teacher_TV, student_TV)


@trap(
    at=[(distill, "sampled_kl")],
    symptom="The loss that is logged is right, and nothing is learned: its gradient is noise around zero.",
    killed_by=("the_sampled_gradient_is_the_full_one_in_the_mean",),
)
def estimate_differentiated(right, student_TV, teacher_TV, token_T):
    """The estimate itself is differentiated, as if the token had not been drawn from the student."""
    return picked(student_TV, token_T) - picked(teacher_TV, token_T)
