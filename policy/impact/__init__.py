"""What a change of policies would change, in the oracle's words: ``felix-py plan``."""
