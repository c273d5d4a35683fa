"A baseline and a FocusNet on digits, trained once a process, and what they answer"
import pytest
from helpers.figures import digit_pair, valid_logits


@pytest.fixture(scope='session')
def pair(): return digit_pair()


@pytest.fixture(scope='session')
def base(pair): return pair[0]


@pytest.fixture(scope='session')
def learn(pair): return pair[1]


@pytest.fixture(scope='session')
def valid(pair):
    "Logits of both networks and the classes for the whole validation set"
    return valid_logits(*pair)
