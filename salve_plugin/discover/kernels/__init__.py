"""The products that a step of training takes its time for; they know no learner."""
