"""What a job does: data and replay, training, measuring, the decision of the gate, promotion."""
