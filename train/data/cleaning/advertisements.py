"""Phrases of advertisements and of what surrounds texts on pages, in English and Chinese: a short list to begin with."""

PHRASES = (
    "accept all cookies", "accept cookies", "add to cart", "all rights reserved", "buy now", "click here to subscribe",
    "click to enlarge", "download our app", "enable javascript", "follow us on", "free shipping", "get the app",
    "join our mailing list", "limited time offer", "log in to comment", "manage cookies", "order now", "powered by wordpress",
    "share on facebook", "share on twitter", "share this article", "share this post", "sign up for free",
    "sign up for our newsletter", "skip to content", "skip to main content", "sponsored content", "sponsored post",
    "subscribe now", "subscribe to our newsletter", "this site uses cookies", "to unsubscribe", "unsubscribe",
    "we use cookies", "you may also like", "your cart is empty",
    "版权所有", "未经授权禁止转载", "点击下载", "点击购买", "点击订阅", "点击关注", "点击查看更多", "扫码关注", "扫描二维码", "长按识别二维码",
    "关注公众号", "关注我们的公众号", "微信扫一扫", "加微信", "添加微信", "免费领取", "限时优惠", "立即购买", "立即下载", "加入购物车",
    "分享到微博", "分享到朋友圈", "广告合作", "商务合作", "友情链接", "上一篇", "下一篇", "返回顶部", "责任编辑",
)  # fmt: skip
