"""Events in, user rows out: the fold, the feature store adapter and the consumer that drives them."""
