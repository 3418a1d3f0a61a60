"""Recipes as YAML."""

import yaml

from hostile.samples import RECIPE, Sample, recipe


def recipes(trap):
    """Recipes as YAML: what expands, what runs code, what YAML makes of odd text."""
    good = yaml.safe_dump(recipe(), sort_keys=False)
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    merged = "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i}\n" + "".join(f"  k{j}: *a{i - 1}\n" for j in range(10)) for i in range(1, 12)
    )
    merges = "a0: &a0 {k0: v, k1: v}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
    )
    texts = {
        "a billion laughs": laughs + good,
        "a billion laughs in an option": laughs.replace("a", "  a").join(["model:\n  name: x\n  options:\n", ""]),
        "a billion laughs of mappings": merged + good,
        "a billion laughs of merges": merges + good,
        "a billion laughs as a list": "\n".join(f"- {line.split(': ', 1)[1]}" for line in laughs.splitlines()),
        "a billion laughs as a key": laughs + "? *a11\n: 1\n",
        "a list that holds itself": "model: &m\n  name: x\n  options: {a: *m}\n",
        "a list that is itself": "&a [*a]",
        "a mapping that holds itself": "&a {model: *a, steps: *a}",
        "arms that hold themselves": good + "more: &m {m: *m}\n",
        "deep": "a: " + "[" * 5000,
        "deep, closed": "a: " + "[" * 3000 + "]" * 3000,
        "deep mappings": "{a: " * 3000 + "}" * 3000,
        "deep by indents": "\n".join(" " * i + "a:" for i in range(3000)),
        "os.system": f"!!python/object/apply:os.system ['touch {trap}/yaml']",
        "object": "!!python/object/new:os.mkdir [x]",
        "name": "model: !!python/name:os.system",
        "module": "model: !!python/module:trap_module",
        "unknown tag": "model: !x {}",
        "binary": "model: !!binary '@@@'",
        "good binary": "model: !!binary aGVsbG8=",
        "date": good + "seed: 2020-01-01\n",
        "no date": good + "seed: 2020-99-99\n",
        "time": good + "seed: 2020-01-01 25:61:61\n",
        "a whole number of 5000 digits": good + "seed: " + "9" * 5000 + "\n",
        "a whole number of 4000 digits": good + "seed: " + "9" * 4000 + "\n",
        "a hexadecimal number of 5000 digits": good + "seed: 0x" + "f" * 5000 + "\n",
        "a number in sixties": good + "seed: 1" + ":59" * 5000 + "\n",
        "a fraction in sixties": good + "seed: 1" + ":59" * 5000 + ".5\n",
        "no number": good + "seed: .nan\n",
        "infinite": good + "seed: .inf\n",
        "a number as a key": good + "1: 2\n",
        "null as a key": good + "null: 2\n",
        "a date as a key": good + "2020-01-01: 2\n",
        "a list as a key": good + "? [a]\n: 2\n",
        "a mapping as a key": good + "? {a: b}\n: 2\n",
        "bytes as a key": good + "? !!binary aGVsbG8=\n: 2\n",
        "bytes deep inside": "model: {name: x, options: {a: !!binary aGVsbG8=}}\n",
        "a set": "model: !!set {a, b}\n",
        "pairs": "model: !!pairs [a: b]\n",
        "an ordered mapping": "model: !!omap [a: b]\n",
        "a bad ordered mapping": "model: !!omap {a: b}\n",
        "a value": "a: =\n",
        "merge of text": "a: {<<: x}\n",
        "forty thousand keys": "".join(f"k{i}: {i}\n" for i in range(40_000)),
        "ten thousand arms": good + "".join(f"  a{i}: {{}}\n" for i in range(10_000)),
        "half a character": 'model: "\\uD800"\n',
        "half a character as a key": '"\\uD800": 1\n',
        "escapes": '"a\\e[2J\\n": 1\n',
        "null": '"a\\0": 1\n',
        "tabs": "a:\n\t- b\n",
        "two documents": "a: 1\n---\nb: 2\n",
        "directives": "%YAML 9.9\n---\na: 1\n",
        "an anchor of nothing": "a: *b\n",
        "a comment alone": "# nothing\n",
        "a long line": "a: " + "x" * 10**6 + "\n",
        "a long key": "x" * 10**6 + ": 1\n",
        "an arm like a path": good + "  ../../x: {}\n",
        "an arm like a device": good + "  CON.: {swaps: []}\n",
    }
    made = [Sample(RECIPE, f"recipe {name}", ".yaml", text.encode(), refused=False) for name, text in texts.items()]
    made.append(Sample(RECIPE, "recipe of many", ".yaml", lambda: b"a: [" + b"[]," * 2**22 + b"]"))
    made.append(Sample(RECIPE, "recipe no text", ".yaml", b"\xff\xfe\x00" + good.encode()))
    return [*made, Sample(RECIPE, "recipe in UTF-16", ".yaml", good.encode("utf-16"))]
