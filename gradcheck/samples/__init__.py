"""The faulty samples that `gradcheck demo` writes out: links to `sample_models/faulty` and `sample_models/scripts/faulty`."""
