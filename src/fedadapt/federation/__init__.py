"""What parties say to each other: the exchange plan, frames, messages, the round and a client's answer."""
