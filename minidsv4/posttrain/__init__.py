"""Post-training: specialists by GRPO with verifiable rewards, and one student of all by on-policy distillation."""
