"""The sample store against its peers."""
