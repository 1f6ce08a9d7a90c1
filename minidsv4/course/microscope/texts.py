"""The texts under the microscope: short, each with something to look for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A text, what it is called in addresses and menus, and a question that a look at it can answer.

    name   one word
    title  a few words
    look   where to click, and what to ask
    text   what the model reads, after <bos>
    """

    name: str
    title: str
    look: str
    text: str


SAMPLES = (
    Sample(
        "function",
        "a short function",
        "Click the last `n`: which earlier `n` do the heads of layer 1 look at?",
        """def factorial(n):
    result = 1
    while n > 1:
        result = result * n
        n = n - 1
    return result


print(factorial(5))
#> 120
""",
    ),
    Sample(
        "bug",
        "the same function with a bug",
        "Colour the text by loss: does `print` in line 4 cost more than `n` costs there without the bug?",
        """def factorial(n):
    result = 1
    while n > 1:
        result = result * print
        n = n - 1
    return result


print(factorial(5))
#> 120
""",
    ),
    Sample(
        "key",
        "a repeated key",
        "Click the last `red`: its value 31 was written more than a window of 32 tokens ago. Which layers reach it?",
        """colours = {"red": 31, "green": 32, "blue": 34, "white": 37}


def code(name):
    if name not in colours:
        raise KeyError(name)
    return colours[name]


print(code("blue"))
#> 34
print(code("red"))
#> 31
""",
    ),
    Sample(
        "list",
        "a long list",
        "Click the last line break: which entries do the indexers of layers 1, 3 and 5 leave out?",
        "values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0]\n"
        "print(values[0])\n#> 3\nprint(len(values))\n#> 33\nprint(max(values))\n#> 9\n",
    ),
    Sample(
        "class",
        "a class with methods",
        "Click a `self` of the last method: how much of the attention goes to the sink, head by head?",
        '''class Stack:
    """A list from which the newest item comes first."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)
''',
    ),
    Sample(
        "imports",
        "imports and a path",
        "Click the last `path`: do the heads find the argument of that name?",
        """import json
import os
from pathlib import Path


def read_settings(path, default=None):
    path = Path(path)
    if not path.exists():
        return default
    with path.open(encoding="utf-8") as stream:
        return json.load(stream)


def write_settings(path, settings):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(settings, stream)
""",
    ),
    Sample(
        "far",
        "a value used far away",
        "Click the last `limit`: its definition is outside the window. Do the picked entries hold it?",
        """limit = 17
name = 'cat'
print(name.upper())
#> CAT
total = 0
for i in range(4):
    total = total + i
print(total)
#> 6
words = ['a', 'b', 'c']
print(len(words))
#> 3
data = [9, 21, 11]
print(max(data))
#> 21
print(limit)
#> 17
""",
    ),
    Sample(
        "repeat",
        "the same line again and again",
        "Colour the text by loss: which token of the line grows dearer, and what does the model expect in its place?",
        "print(x)\n" * 14,
    ),
    Sample(
        "nested",
        "brackets and branches",
        "Click a closing bracket: do any heads look at the opening one?",
        """def grade(points):
    if points >= 90:
        return "A"
    elif points >= 80:
        return "B"
    elif points >= 70:
        return "C"
    else:
        return "F"


print([grade(max(p, (p + 5) // 2)) for p in (95, 83, 71, 12)])
""",
    ),
    Sample(
        "english",
        "plain English",
        "Compare the loss with that of the code: which of the two did the model read in training?",
        "The cat sat on the mat, and the dog sat on the cat. Nobody asked the mat. In the evening they all went home, "
        "and the mat stayed where it was, because a mat does not walk.\n",
    ),
    Sample(
        "noise",
        "letters by chance",
        "Where nothing can be guessed: how does the share of the sink in layer 4 compare with that in real code?",
        "qz7 kfw0 x9pj vtb lmr2 hcd8 q1s yng5 zzk w3e oab6 rt4u\n",
    ),
    Sample(
        "loops",
        "a program and what it prints",
        "Click the tokens after `#>`: how sure is the model of each result?",
        """n = max(14, 8)
if 6 > n:
    number = max(n, n)
else:
    number = 6 - n
print(number)
number = (number + number) % 3
if not number % 4:
    count = n % 5
else:
    count = abs(1 - 6)
print(count)
data = [9, 21, 11]
print(len(data))
print(number)
#> -8
#> 5
#> 3
#> 2
""",
    ),
)
