"""Attack a plain PyTorch model: how many images does it still get right?"""

import torchvision
from torch import nn

import prunerob
from prunerob.data import MNIST

# Any nn.Module from pixels in [0, 1] to logits; if it normalises, that is its first layer.
model = torchvision.models.resnet18(num_classes=10)
model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
batch = MNIST().test_sample(100)

table = prunerob.evaluate(
    model,
    batch.x,
    batch.y,
    {"FGSM": prunerob.FGSM(eps=8 / 255), "PGD": prunerob.PGD(eps=8 / 255, steps=5)},
)
print(table)

# Adversarial examples themselves: float32, within eps of the images and in [0, 1].
x_adv = prunerob.PGD(eps="8/255", step_size="2/255", steps=5)(model.eval(), batch.x, batch.y)
print(f"largest change of a pixel: {255 * float((x_adv - batch.x).abs().max()):.2f} / 255")
