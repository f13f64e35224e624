"""The verdict of the policy APIs, from their prose, and its reasons. Shares no code with the engine."""
