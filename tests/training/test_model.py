"""The trainable model computes what the product's encoder does."""

from __future__ import annotations

from lazy import Lazy

torch = Lazy("torch")
Attention = Lazy("step_audio.encoder:Attention")
PlainAttention = Lazy("step_audio_training.model:PlainAttention")


def test_attention_by_two_products_is_the_encoders():
    """There and back, with positions that are hidden."""
    torch.manual_seed(0)
    theirs, ours = Attention(24, 3), PlainAttention(24, 3)
    ours.load_state_dict(theirs.state_dict())
    visible = torch.arange(9) < torch.tensor([9, 4])[:, None, None, None]
    outputs, slopes = [], []
    for attention in (theirs, ours):
        x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        outputs.append(attention(x, visible))
        outputs[-1].square().sum().backward()
        slopes += [x.grad]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 0.01
