"""Large models: trained on whatever is there, planned for what is not."""
