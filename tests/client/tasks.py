"""Tasks of the client's tests, in a module that workers can import."""

import os
import time


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def nested(farm, depth, deadline):
    if depth == 0:
        return os.getpid()
    return farm.submit(nested, farm, depth - 1, deadline).result(timeout=deadline)


def append(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def die_after_noting(path):
    append(path, "begun")
    os._exit(7)


def after(seconds, value):
    time.sleep(seconds)
    return value


def divide(number, by):
    return number / by


def echo(value):
    return value
