# Keras on the torch backend: a Sequential, compile and fit.
# needs: keras
# healthy: test_accuracy > 0.9
# fault: the last layer, which should give probabilities, has a ReLU
# codes: LOSS001
# at: layers.Dense(10 | model.compile( | model.fit( | from_logits
# -     layers.Dense(10, activation="softmax"),
# +     layers.Dense(10, activation="relu"),
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

keras.utils.set_random_seed(812)
digits = load_digits()
images = (digits.images / 16).astype("float32")[..., np.newaxis]
x_train, x_test, y_train, y_test = train_test_split(images, digits.target, test_size=0.2, random_state=0)

model = keras.Sequential([
    keras.Input(shape=(8, 8, 1)),
    layers.Conv2D(16, 3, activation="relu"),
    layers.Conv2D(32, 3, activation="relu"),
    layers.MaxPooling2D(2),
    layers.Flatten(),
    layers.Dropout(0.3),
    layers.Dense(10, activation="softmax"),
])
model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=64, epochs=12, validation_split=0.1, verbose=2)
loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print("test_accuracy", accuracy)
