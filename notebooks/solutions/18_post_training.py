"""Solutions of the exercises in 18_post_training.ipynb."""

import math


def group_advantages(rewards, size):
    """Distance of each reward from its group's mean, in standard deviations."""
    found = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        mean = sum(group) / size
        std = math.sqrt(sum((reward - mean) ** 2 for reward in group) / size)
        for reward in group:
            found.append((reward - mean) / std if std > 0 else 0.0)
    return found


def pull_of_teacher(logits, teacher_logits):
    """The gradient of the reverse divergence in the student's logits."""
    log_p, log_q = _log_softmax(logits), _log_softmax(teacher_logits)
    excess = [one - other for one, other in zip(log_p, log_q)]
    kl = sum(math.exp(one) * more for one, more in zip(log_p, excess))
    return [math.exp(one) * (more - kl) for one, more in zip(log_p, excess)]


def _log_softmax(logits):
    """Log-probabilities of logits."""
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]
