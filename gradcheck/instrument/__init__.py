"""Where torch is listened to: module hooks, the first pass, tensor statistics, the autograd graph."""
