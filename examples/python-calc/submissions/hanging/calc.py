"""Right as long as the text is: what is not arithmetic is looked at again and again."""


def evaluate(text):
    text = text.replace(" ", "")
    if text.isdigit():
        return int(text)
    while not text or not set(text) <= set("0123456789+-*/()") or text.count("(") != text.count(")"):
        text = text.strip()
    return eval(text)
